package main

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"

	"golang.org/x/term"
)

const (
	// maxPasswordLine bounds the first line of a password file.
	maxPasswordLine = 4096
	// shortPassword is below what a stolen file withstands for long.
	shortPassword = 8
)

// password returns the password of an account, from the file or the terminal.
func (a *app) password(prompt string) ([]byte, error) {
	if a.cli.PasswordFile != "" {
		return readPasswordFile(a.cli.PasswordFile)
	}
	return a.askPassword(prompt)
}

// newPassword returns a password to be, from a file or twice from the
// terminal.
func (a *app) newPassword(file, name string) ([]byte, error) {
	password, err := func() ([]byte, error) {
		if file != "" {
			return readPasswordFile(file)
		}
		first, err := a.askPassword(fmt.Sprintf("New password for %s: ", name))
		if err != nil {
			return nil, err
		}
		second, err := a.askPassword("The same again: ")
		if err != nil {
			return nil, err
		}
		if !bytes.Equal(first, second) {
			return nil, errors.New("the two passwords differ; nothing was changed")
		}
		return first, nil
	}()
	if err == nil && len(password) < shortPassword {
		a.note("this password is short; one of %d characters or more is safer", shortPassword)
	}
	return password, err
}

// readPasswordFile returns the first line of a file.
func readPasswordFile(path string) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, usageError{fmt.Errorf("reading the password file: %w", err)}
	}
	defer f.Close()
	line, err := bufio.NewReader(io.LimitReader(f, maxPasswordLine)).ReadBytes('\n')
	if err != nil && !errors.Is(err, io.EOF) {
		return nil, usageError{fmt.Errorf("reading the password file: %w", err)}
	}
	line = bytes.TrimRight(line, "\r\n")
	if len(line) == 0 {
		return nil, usageError{fmt.Errorf("the first line of the password file %s is empty", path)}
	}
	return line, nil
}

// askPassword asks on the terminal, also when standard input is something else.
func (a *app) askPassword(prompt string) ([]byte, error) {
	tty, err := os.OpenFile("/dev/tty", os.O_RDWR, 0)
	if err != nil {
		return nil, withHint(usageError{errors.New("there is no terminal to ask for the password on")},
			"give it with --password-file FILE or QPC_PASSWORD_FILE")
	}
	defer tty.Close()
	fmt.Fprint(tty, prompt)
	before, err := term.GetState(int(tty.Fd()))
	if err != nil {
		return nil, fmt.Errorf("reading the password: %w", err)
	}
	password, err := interruptible(a.stop, func() ([]byte, error) { return term.ReadPassword(int(tty.Fd())) })
	if errors.Is(err, errInterrupted) {
		_ = term.Restore(int(tty.Fd()), before) // the read that goes on has turned the echo off
	}
	fmt.Fprintln(tty)
	if err != nil {
		return nil, fmt.Errorf("reading the password: %w", err)
	}
	if len(password) == 0 {
		return nil, errors.New("no password was given")
	}
	return password, nil
}

// ask asks for a line on the terminal.
func (a *app) ask(prompt string) (string, error) {
	tty, err := os.OpenFile("/dev/tty", os.O_RDWR, 0)
	if err != nil {
		return "", withHint(usageError{errors.New("there is no terminal to ask on")}, "--yes answers yes")
	}
	defer tty.Close()
	fmt.Fprint(tty, prompt)
	line, err := interruptible(a.stop, func() (string, error) { return bufio.NewReader(tty).ReadString('\n') })
	if err != nil && !errors.Is(err, io.EOF) {
		return "", fmt.Errorf("reading the answer: %w", err)
	}
	return string(bytes.TrimSpace([]byte(line))), nil
}

// errInterrupted reports Ctrl-C at a prompt.
var errInterrupted = errors.New("interrupted")

// interruptible runs a read that knows no context. When stop is closed first,
// the read goes on until the program ends, which is at once.
func interruptible[T any](stop <-chan struct{}, read func() (T, error)) (T, error) {
	type result struct {
		value T
		err   error
	}
	done := make(chan result, 1)
	go func() {
		value, err := read()
		done <- result{value, err}
	}()
	select {
	case r := <-done:
		return r.value, r.err
	case <-stop:
		var none T
		return none, errInterrupted
	}
}

// isTerminal reports whether somebody sits at both ends.
func isTerminal(files ...*os.File) bool {
	for _, f := range files {
		if !term.IsTerminal(int(f.Fd())) {
			return false
		}
	}
	return true
}
