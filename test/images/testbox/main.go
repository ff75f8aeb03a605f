// Command testbox is the program inside the test images. What it does depends on the name it is called by: a web server
// (nginx, httpd-foreground), pgrep and ipcs as far as the conformance suite uses them, pause, and nnp, which prints
// its effective user.
package main

import (
	"bufio"
	"fmt"
	"net/http"
	"os"
	"os/signal"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"
)

const master = "nginx: master process nginx"

func main() {
	name := filepath.Base(os.Args[0])
	if strings.HasPrefix(os.Args[0], master) {
		name = master
	}
	var err error
	switch name {
	case "nginx":
		// The conformance suite looks for the process title that nginx gives itself.
		err = syscall.Exec("/usr/sbin/nginx", append([]string{master}, os.Args[1:]...), os.Environ())
	case master:
		// Like nginx, go on without a pid file where it can't be written.
		_ = os.WriteFile("/var/run/nginx.pid", []byte(strconv.Itoa(os.Getpid())+"\n"), 0o644)
		err = serve("nginx")
	case "httpd-foreground":
		fmt.Fprintln(os.Stderr, "AH00094: Command line: 'httpd -D FOREGROUND'")
		err = serve("httpd")
	case "nnp":
		fmt.Printf("Effective uid: %d\n", os.Geteuid())
	case "pause":
		stop := make(chan os.Signal, 1)
		signal.Notify(stop, syscall.SIGTERM, syscall.SIGINT)
		<-stop
	case "pgrep":
		err = pgrep(os.Args[1:])
	case "ipcs":
		err = ipcs()
	default:
		err = fmt.Errorf("no applet %q", name)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "testbox:", err)
		os.Exit(1)
	}
}

// serve answers every request with index.html of the working directory, or a greeting, on the port given with -p.
func serve(name string) error {
	port := "80"
	for i, a := range os.Args {
		if a == "-p" && i+1 < len(os.Args) {
			port = os.Args[i+1]
		}
	}
	go func() {
		stop := make(chan os.Signal, 1)
		signal.Notify(stop, syscall.SIGTERM, syscall.SIGINT, syscall.SIGQUIT)
		<-stop
		os.Exit(0)
	}()
	s := &http.Server{Addr: ":" + port, ReadHeaderTimeout: 10 * time.Second, Handler: http.HandlerFunc(func(w http.ResponseWriter, q *http.Request) {
		body, err := os.ReadFile("index.html")
		if err != nil {
			body = []byte("<h1>Welcome to " + name + "!</h1>\n")
		}
		_, _ = w.Write(body)
		fmt.Printf("%s %s %s 200\n", q.RemoteAddr, q.Method, q.URL.Path)
	})}
	fmt.Println(name + ": serving on port " + port)
	return s.ListenAndServe()
}

func pgrep(args []string) error {
	if len(args) == 0 {
		return fmt.Errorf("pgrep: no pattern")
	}
	found := false
	procs, err := filepath.Glob("/proc/[0-9]*/comm")
	for _, p := range procs {
		b, err := os.ReadFile(p)
		pid := filepath.Base(filepath.Dir(p))
		if err == nil && strings.Contains(string(b), args[len(args)-1]) && pid != strconv.Itoa(os.Getpid()) {
			found = true
			fmt.Println(pid)
		}
	}
	if err == nil && !found {
		os.Exit(1)
	}
	return err
}

// ipcs lists the shared memory segments of the IPC namespace: key and id are the first columns of /proc/sysvipc/shm.
func ipcs() error {
	f, err := os.Open("/proc/sysvipc/shm")
	if err != nil {
		return err
	}
	defer f.Close()
	fmt.Print("\n------ Shared Memory Segments --------\nkey        shmid      perms      bytes\n")
	lines := bufio.NewScanner(f)
	for n := 0; lines.Scan(); n++ {
		if c := strings.Fields(lines.Text()); n > 0 && len(c) > 3 {
			key, _ := strconv.ParseInt(c[0], 10, 64)
			fmt.Printf("0x%08x %-10s %-10s %s\n", uint32(key), c[1], c[2], c[3])
		}
	}
	return lines.Err()
}
