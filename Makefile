# Everything starts here; the work is done by cargo and by the scripts in tests/.
SHELL := /bin/bash
TARGET := $(or $(CARGO_TARGET_DIR),target)
FS_TYPE ?= xfs

.PHONY: help demo test lint unit guest contract sanity deploy image kubernetes build tools-demo tools-test

help:
	@echo "make demo      watch a volume's whole life on a simulated cloud (root for loop devices and mounts)"
	@echo "               FS_TYPE=xfs|ext4|btrfs chooses the file system"
	@echo "make test      what a change has to pass (needs Go as well)"
	@echo "make lint      format, lints with warnings as errors, dependencies"
	@echo "make unit      unit tests, and integration tests on real disks"
	@echo "make guest     the node's tests in a virtual machine, with what this kernel or its root may lack"
	@echo "make contract  our proto against the official one; Vultr's Go client against the simulated cloud"
	@echo "make sanity    csi-sanity against the driver on the simulated cloud"
	@echo "make deploy    the Helm chart, the manifest rendered from it, alerts and guides"
	@echo "make image     the image from its Dockerfile, without a registry, and what is in it"
	@echo "make kubernetes  a real Kubernetes with two virtual workers, and the driver on it as it is shipped;"
	@echo "               FLOWS=all|NAME,NAME shows all of it, which takes hours, or some (names: CONTRIBUTING.md)"
	@echo "make build     the driver, optimised: target/release/cloud-block-csi"

demo: tools-demo
	cargo build --workspace --bins
	@tests/root.sh $(TARGET)/debug/demo --fs-type $(FS_TYPE)

test: tools-test
	@tests/run.sh lint unit guest contract sanity deploy image kubernetes

lint unit guest contract sanity deploy image kubernetes: tools-test
	@tests/run.sh $@

build:
	cargo build --release --package cloud-block-csi

tools-demo:
	@tests/tools.sh demo

tools-test:
	@tests/tools.sh test
