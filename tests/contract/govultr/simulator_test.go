package contract

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/vultr/govultr/v3"
)

// patience is how long a test waits for what must happen.
const patience = 10 * time.Second

// simulator is a running vultr-sim, as its line of JSON tells it.
type simulator struct {
	API       string     `json:"api"`
	Control   string     `json:"control"`
	Token     string     `json:"token"`
	Instances []instance `json:"instances"`
}

type instance struct {
	ID          string `json:"id"`
	Label       string `json:"label"`
	Region      string `json:"region"`
	MetadataURL string `json:"metadata_url"`
}

func TestMain(m *testing.M) {
	if os.Getenv("VULTR_SIM") == "" {
		fmt.Fprintln(os.Stderr, "VULTR_SIM must be the path of the vultr-sim binary (cargo build -p vultr-sim)")
		os.Exit(1)
	}
	os.Exit(m.Run())
}

// start runs a simulator without disks, with the instances one and two in ewr and far in ams, which does everything
// at once and has no rate limit, unless settings ("name=value") say otherwise.
func start(t *testing.T, settings ...string) *simulator {
	t.Helper()
	args := []string{"--no-disks", "--instance", "one:ewr", "--instance", "two:ewr", "--instance", "far:ams"}
	quick := []string{
		"create_ms=0", "attach_ms=0", "detach_ms=0", "resize_every_ms=0", "snapshot_ms=0",
		"vfs_create_ms=0", "vfs_attach_ms=0", "vfs_detach_ms=0", "requests_per_second=0",
	}
	for _, setting := range append(quick, settings...) {
		args = append(args, "--set", setting)
	}
	command := exec.Command(os.Getenv("VULTR_SIM"), args...)
	command.Stderr = os.Stderr
	stdout, err := command.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := command.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { stop(t, command) })
	sim := new(simulator)
	if err := json.NewDecoder(stdout).Decode(sim); err != nil {
		t.Fatalf("the simulator's line of JSON: %v", err)
	}
	return sim
}

// stop ends the simulator as an init system would and wants it to end well.
func stop(t *testing.T, command *exec.Cmd) {
	t.Helper()
	if err := command.Process.Signal(syscall.SIGTERM); err != nil {
		t.Error(err)
	}
	ended := make(chan error, 1)
	go func() { ended <- command.Wait() }()
	select {
	case err := <-ended:
		if err != nil {
			t.Errorf("the simulator did not end well: %v", err)
		}
	case <-time.After(patience):
		t.Error("the simulator does not end")
		_ = command.Process.Kill()
	}
}

// client is the official client, set up as Vultr's own driver does it, but for the token's way into the header.
func (s *simulator) client(t *testing.T, token string) *govultr.Client {
	t.Helper()
	client := govultr.NewClient(&http.Client{Transport: bearer(token)})
	if err := client.SetBaseURL(s.API); err != nil {
		t.Fatal(err)
	}
	return client
}

// bearer adds the token to each request, on a new connection each.
type bearer string

func (b bearer) RoundTrip(request *http.Request) (*http.Response, error) {
	request = request.Clone(request.Context())
	request.Header.Set("Authorization", "Bearer "+string(b))
	return transport.RoundTrip(request)
}

var transport = &http.Transport{DisableKeepAlives: true}

func (s *simulator) instance(t *testing.T, label string) instance {
	t.Helper()
	for _, i := range s.Instances {
		if i.Label == label {
			return i
		}
	}
	t.Fatalf("no instance %s", label)
	return instance{}
}

// control asks the control interface and decodes its answer into answer, if there is to be one.
func (s *simulator) control(t *testing.T, method, path string, body, answer any) {
	t.Helper()
	encoded, err := json.Marshal(body)
	if err != nil {
		t.Fatal(err)
	}
	request, err := http.NewRequest(method, s.Control+path, bytes.NewReader(encoded))
	if err != nil {
		t.Fatal(err)
	}
	request.Header.Set("Content-Type", "application/json")
	response, err := http.DefaultClient.Do(request)
	if err != nil {
		t.Fatal(err)
	}
	defer response.Body.Close()
	told, err := io.ReadAll(response.Body)
	if err != nil {
		t.Fatal(err)
	}
	if response.StatusCode/100 != 2 {
		t.Fatalf("%s %s: %s %s", method, path, response.Status, told)
	}
	if answer != nil {
		if err := json.Unmarshal(told, answer); err != nil {
			t.Fatal(err)
		}
	}
}

// clean wants nothing to be left in the account.
func (s *simulator) clean(t *testing.T) {
	t.Helper()
	var left map[string][]string
	s.control(t, http.MethodGet, "/leftovers", nil, &left)
	for kind, names := range left {
		if len(names) != 0 {
			t.Errorf("%s left: %v", kind, names)
		}
	}
}

// until gets a volume until it is as wanted.
func until(t *testing.T, client *govultr.Client, id string, wanted func(*govultr.BlockStorage) bool) *govultr.BlockStorage {
	t.Helper()
	for deadline := time.Now().Add(patience); ; {
		block, _, err := client.BlockStorage.Get(context.Background(), id)
		if err != nil {
			t.Fatal(err)
		}
		if wanted(block) {
			return block
		}
		if time.Now().After(deadline) {
			t.Fatalf("never as wanted: %+v", block)
		}
	}
}

// refused wants an error whose text, the only thing that the client hands on, has this in it.
func refused(t *testing.T, err error, text string) {
	t.Helper()
	if err == nil || !strings.Contains(err.Error(), text) {
		t.Errorf("got %v, want an error with %q", err, text)
	}
}

func ok(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}
