package testpg

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestCheckIntegrityRefusesOtherBytes(t *testing.T) {
	path := filepath.Join(t.TempDir(), "f.tgz")
	if err := os.WriteFile(path, []byte("abc"), 0o600); err != nil {
		t.Fatal(err)
	}
	const abc = "sha512-3a81oZNherrMQXNJriBBMRLm+k6JqX6iCp7u5ktV05ohkpkqJ0/BqDa6PCOj/uu9RU1EI2Q86A4qmslPpUyknw==" // FIPS 180-2, appendix C.1
	if err := checkIntegrity(path, abc); err != nil {
		t.Errorf("the right digest: %v", err)
	}
	if err := os.WriteFile(path, []byte("abd"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := checkIntegrity(path, abc); err == nil || !strings.Contains(err.Error(), "digest") {
		t.Errorf("other bytes gave %v", err)
	}
}

func TestUntarStaysInItsDirectory(t *testing.T) {
	var b bytes.Buffer
	zw := gzip.NewWriter(&b)
	tw := tar.NewWriter(zw)
	for _, name := range []string{"package/native/bin/postgres", "package/native/../../../escaped", "package/other"} {
		if err := tw.WriteHeader(&tar.Header{Name: name, Typeflag: tar.TypeReg, Mode: 0o600, Size: 1}); err != nil {
			t.Fatal(err)
		}
		if _, err := tw.Write([]byte("x")); err != nil {
			t.Fatal(err)
		}
	}
	if err := tw.Close(); err != nil {
		t.Fatal(err)
	}
	if err := zw.Close(); err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	tarball, tree := filepath.Join(dir, "t.tgz"), filepath.Join(dir, "a", "b", "tree")
	if err := os.WriteFile(tarball, b.Bytes(), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := untar(tarball, "package/native/", tree); err != nil {
		t.Fatal(err)
	}
	var files []string
	err := filepath.WalkDir(dir, func(path string, d os.DirEntry, err error) error {
		if err == nil && !d.IsDir() {
			files = append(files, strings.TrimPrefix(path, dir))
		}
		return err
	})
	if got, want := strings.Join(files, " "), "/a/b/tree/bin/postgres /t.tgz"; err != nil || got != want {
		t.Errorf("unpacked %q, want %q: %v", got, want, err)
	}
	if st, err := os.Stat(filepath.Join(tree, "bin/postgres")); err != nil || st.Mode().Perm() != 0o755 {
		t.Errorf("a program's mode is not 0755: %v %v", st, err)
	}
}

func TestRestoreLinksRefusesToLeaveThePackage(t *testing.T) {
	tree := t.TempDir()
	write := func(links string) {
		if err := os.WriteFile(filepath.Join(tree, "pg-symlinks.json"), []byte(links), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	write(`[{"source":"native/lib/a.so.1","target":"native/a.so"}]`)
	if err := restoreLinks(tree); err != nil {
		t.Fatal(err)
	}
	if to, err := os.Readlink(filepath.Join(tree, "a.so")); err != nil || to != "lib/a.so.1" {
		t.Errorf("link goes to %q: %v", to, err)
	}
	write(`[{"source":"native/../../etc/passwd","target":"native/b.so"}]`)
	if err := restoreLinks(tree); err == nil {
		t.Error("a link out of the package was made")
	}
}

func TestIsCommit(t *testing.T) {
	for sql, want := range map[string]bool{
		"COMMIT": true, "commit;": true, " \n commit and chain\x00": true, "END": true, "COMMIT PREPARED 'x'": true,
		"COMMITTED": false, "SELECT 'commit'": false, "ENDING": false, "": false, "ROLLBACK": false,
	} {
		if got := isCommit([]byte(sql)); got != want {
			t.Errorf("isCommit(%q) = %t", sql, got)
		}
	}
}
