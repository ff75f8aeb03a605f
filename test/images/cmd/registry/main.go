// Command registry serves the test images from loopback, or says which digest an image has.
package main

import (
	"flag"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"os"
	"runtime"
	"strings"
	"time"

	"github.com/seed-9a14075a/cri-server/test/images"
)

func main() {
	if err := run(); err != nil {
		fmt.Fprintln(os.Stderr, "registry:", err)
		os.Exit(1)
	}
}

func run() error {
	listen := flag.String("listen", "127.0.0.1:5055", "address to serve on")
	assets := flag.String("assets", ".cache/images", "directory with the ingredients (make assets)")
	big := flag.Bool("big", false, "also serve bench/big:200m")
	digest := flag.String("digest", "", "print the digest of REPO:TAG and exit")
	flag.Parse()

	a, err := images.Load(*assets, runtime.GOARCH)
	if err != nil {
		return err
	}
	r, err := images.Catalog(a, *big)
	if err != nil {
		return err
	}
	if *digest != "" {
		repo, tag, _ := strings.Cut(*digest, ":")
		d, err := r.Digest(repo, tag)
		if err == nil {
			fmt.Println(d)
		}
		return err
	}
	l, err := net.Listen("tcp", *listen)
	if err != nil {
		return err
	}
	slog.Info("serving test images", "address", l.Addr())
	s := &http.Server{Handler: r, ReadHeaderTimeout: 10 * time.Second}
	return s.Serve(l)
}
