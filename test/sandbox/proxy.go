package sandbox

import (
	"errors"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"testing"
	"time"
)

const proxySocket = "LODGE_SANDBOX_PROXY"

// offerProxy serves, outside the sandbox, plain HTTP downloads for what is
// inside: the way to the distribution's packages, and to nothing else that has
// a method other than GET. It returns the socket to reach it by.
func offerProxy() (path string, closeIt func(), err error) {
	dir, err := os.MkdirTemp("", "lodge-sandbox-")
	if err != nil {
		return "", nil, err
	}
	path = filepath.Join(dir, "proxy")
	l, err := net.Listen("unix", path)
	if err != nil {
		return "", nil, err
	}
	srv := &http.Server{Handler: http.HandlerFunc(fetch), ReadHeaderTimeout: 10 * time.Second}
	go srv.Serve(l)
	return path, func() { srv.Close(); os.RemoveAll(dir) }, nil
}

// fetch answers one request that a client made to its proxy.
func fetch(w http.ResponseWriter, r *http.Request) {
	if r.Method != http.MethodGet && r.Method != http.MethodHead || r.URL.Scheme != "http" {
		http.Error(w, "only plain HTTP downloads pass", http.StatusForbidden)
		return
	}
	out := r.Clone(r.Context())
	out.RequestURI = ""
	out.Header.Del("Proxy-Connection")
	answer, err := http.DefaultTransport.RoundTrip(out)
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadGateway)
		return
	}
	defer answer.Body.Close()
	for k, v := range answer.Header {
		w.Header()[k] = v
	}
	w.WriteHeader(answer.StatusCode)
	io.Copy(w, answer.Body)
}

// Proxy opens the way to the distribution's packages until the test ends and
// returns its address for http_proxy.
func Proxy(t testing.TB) string {
	t.Helper()
	address, closeIt, err := OpenProxy()
	if errors.Is(err, errOutside) {
		t.Skip(err)
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(closeIt)
	return address
}

var errOutside = errors.New("downloads need the sandbox, and that needs root")

// OpenProxy is Proxy for programs that are no tests.
func OpenProxy() (address string, closeIt func(), err error) {
	path := os.Getenv(proxySocket)
	if path == "" {
		return "", nil, errOutside
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return "", nil, err
	}
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go relay(c, path)
		}
	}()
	return "http://" + l.Addr().String(), func() { l.Close() }, nil
}

func relay(c net.Conn, path string) {
	defer c.Close()
	out, err := net.Dial("unix", path)
	if err != nil {
		return
	}
	defer out.Close()
	done := make(chan struct{}, 2)
	go func() { io.Copy(out, c); done <- struct{}{} }()
	go func() { io.Copy(c, out); done <- struct{}{} }()
	<-done
}
