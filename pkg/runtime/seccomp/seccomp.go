// Package seccomp turns profiles into filters: RuntimeDefault, Localhost files and OCI profiles are resolved,
// compiled to classic BPF by libseccomp once, and kept by the profile's content.
package seccomp
