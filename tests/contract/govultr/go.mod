module github.com/cloud-block-csi/cloud-block-csi/tests/contract/govultr

go 1.25.0

require (
	github.com/vultr/govultr/v3 v3.32.0
	github.com/vultr/metadata v1.1.0
)

require (
	github.com/google/go-querystring v1.2.0 // indirect
	github.com/hashicorp/go-cleanhttp v0.5.2 // indirect
	github.com/hashicorp/go-retryablehttp v0.7.8 // indirect
)
