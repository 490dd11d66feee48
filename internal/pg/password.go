package pg

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os/exec"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
)

const passwordTimeout = 30 * time.Second

// password runs PasswordCommand, where there is one. The command's output is never shown, its
// arguments neither: both can hold the secret.
func (s *Server) password(ctx context.Context, conf *pgx.ConnConfig) error {
	if len(s.cfg.PasswordCommand) == 0 {
		return nil
	}
	name := s.cfg.PasswordCommand[0]
	timeout := s.cfg.PasswordTimeout
	if timeout <= 0 {
		timeout = passwordTimeout
	}
	cmdCtx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	cmd := exec.CommandContext(cmdCtx, name, s.cfg.PasswordCommand[1:]...)
	cmd.Dir = s.cfg.Dir
	cmd.WaitDelay = time.Second // a grandchild that keeps the pipe open must not hold us up
	var out bytes.Buffer
	cmd.Stdout = &out
	err := cmd.Run()
	switch {
	case ctx.Err() != nil:
		return context.Cause(ctx)
	case cmdCtx.Err() != nil:
		return fmt.Errorf("%s did not end within %s", name, timeout)
	case err != nil && !errors.Is(err, exec.ErrWaitDelay):
		return fmt.Errorf("running %s: %w", name, err)
	}
	line, _, _ := strings.Cut(out.String(), "\n")
	if line = strings.TrimRight(line, "\r"); line == "" {
		return fmt.Errorf("%s printed no password", name)
	}
	conf.Password = line
	return nil
}
