// Package suite is the part of the Kubernetes end-to-end tests that tests a CSI driver by its description
// (-storage.testdriver), and nothing else of them.
package suite

import (
	"flag"
	"net/http"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/onsi/ginkgo/v2"
	"github.com/onsi/gomega"
	"k8s.io/client-go/dynamic"
	_ "k8s.io/component-base/logs/testinit"
	"k8s.io/kubernetes/test/e2e/framework"
	"k8s.io/kubernetes/test/e2e/framework/config"
	_ "k8s.io/kubernetes/test/e2e/framework/debug/init"
	_ "k8s.io/kubernetes/test/e2e/framework/node/init"
	"k8s.io/kubernetes/test/e2e/framework/testfiles"
	_ "k8s.io/kubernetes/test/e2e/storage/external"
	manifests "k8s.io/kubernetes/test/e2e/testing-manifests"
)

func TestMain(m *testing.M) {
	config.CopyFlags(config.Flags, flag.CommandLine)
	framework.RegisterCommonFlags(flag.CommandLine)
	framework.RegisterClusterFlags(flag.CommandLine)
	flag.Parse()
	// The pods that the specs are made of come from files that are built in.
	testfiles.AddFileSource(manifests.GetE2ETestingManifestsFS())
	framework.AfterReadingAllFlags(&framework.TestContext)
	framework.NewFrameworkExtensions = append(framework.NewFrameworkExtensions, keepItsPace)
	os.Exit(m.Run())
}

func TestStorage(t *testing.T) {
	gomega.RegisterFailHandler(framework.Fail)
	specs, reporter := framework.CreateGinkgoConfig()
	ginkgo.RunSpecs(t, "storage", specs, reporter)
}

// How long a person would take from one command to the next.
const pace = 3 * time.Second

// The snapshot controller (8.6.0) goes by the policy that it knows of a content. Where that becomes Delete within the
// milliseconds before the snapshot is deleted, it may still know Retain: it lets the snapshot go, the content stays for ever,
// and no driver is asked for anything. Where snapshots are retained the suite does just that to clean up, one after the other
// at once; here it waits in between.
func keepItsPace(f *framework.Framework) {
	ginkgo.BeforeEach(func() {
		config := f.ClientConfig()
		config.Wrap(func(next http.RoundTripper) http.RoundTripper { return paced{next} })
		client, err := dynamic.NewForConfig(config)
		framework.ExpectNoError(err)
		f.DynamicClient = client
	})
}

// Waits after it has changed a content of a snapshot.
type paced struct{ http.RoundTripper }

func (p paced) RoundTrip(request *http.Request) (*http.Response, error) {
	response, err := p.RoundTripper.RoundTrip(request)
	if err == nil && request.Method == http.MethodPut && strings.Contains(request.URL.Path, "/volumesnapshotcontents/") {
		select {
		case <-time.After(pace):
		case <-request.Context().Done():
		}
	}
	return response, err
}
