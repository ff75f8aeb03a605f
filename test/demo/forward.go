package main

import (
	"bufio"
	"bytes"
	"fmt"
	"io"
	"net/http"
	"time"

	v1 "k8s.io/cri-api/pkg/apis/runtime/v1"
	"k8s.io/streaming/pkg/httpstream"
	"k8s.io/streaming/pkg/httpstream/spdy"
)

// forward asks for the pod's page through the CRI's port-forward, and then on the node's address.
func (d *demo) forward() error {
	began := time.Now()
	r, err := d.Runtime.PortForward(d.ctx, &v1.PortForwardRequest{PodSandboxId: d.pod, Port: []int32{8080}})
	if err != nil {
		return err
	}
	body, err := getThrough(r.Url, "8080")
	if err != nil {
		return fmt.Errorf("port-forward: %w", err)
	}
	d.took(began, "PortForward to 8080 of the pod")
	quote(body)
	began = time.Now()
	client := &http.Client{Timeout: 10 * time.Second, Transport: &http.Transport{DisableKeepAlives: true}}
	for _, url := range []string{"http://127.0.0.1:12080/", "http://" + d.ip + ":8080/"} {
		page, err := client.Get(url)
		if err != nil {
			return err
		}
		b, err := io.ReadAll(page.Body)
		_ = page.Body.Close()
		if err != nil {
			return err
		}
		d.took(began, "GET %s", url)
		quote(string(b))
		began = time.Now()
	}
	return nil
}

// getThrough makes one HTTP request over a port-forward stream, as kubectl does.
func getThrough(url, port string) (string, error) {
	tripper, err := spdy.NewRoundTripper(nil)
	if err != nil {
		return "", err
	}
	request, err := http.NewRequest(http.MethodPost, url, nil)
	if err != nil {
		return "", err
	}
	request.Header.Set(httpstream.HeaderProtocolVersion, "portforward.k8s.io")
	response, err := (&http.Client{Transport: tripper}).Do(request)
	if err != nil {
		return "", err
	}
	conn, err := tripper.NewConnection(response)
	if err != nil {
		return "", err
	}
	defer conn.Close()
	headers := http.Header{}
	headers.Set(v1StreamType, "error")
	headers.Set(v1Port, port)
	headers.Set(v1RequestID, "0")
	failure, err := conn.CreateStream(headers)
	if err != nil {
		return "", err
	}
	if err := failure.Close(); err != nil { // nothing is written to it by this side
		return "", err
	}
	headers.Set(v1StreamType, "data")
	data, err := conn.CreateStream(headers)
	if err != nil {
		return "", err
	}
	if _, err := io.WriteString(data, "GET / HTTP/1.1\r\nHost: pod\r\nConnection: close\r\n\r\n"); err != nil {
		return "", err
	}
	answer, err := http.ReadResponse(bufio.NewReader(data), nil)
	if err != nil {
		text, _ := io.ReadAll(failure)
		return "", fmt.Errorf("%w %s", err, bytes.TrimSpace(text))
	}
	defer answer.Body.Close()
	b, err := io.ReadAll(answer.Body)
	return string(b), err
}

// Headers of port-forward streams, from k8s.io/api/core/v1.
const (
	v1StreamType = "streamType"
	v1Port       = "port"
	v1RequestID  = "requestID"
)
