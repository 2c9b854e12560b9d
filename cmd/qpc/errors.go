package main

import (
	"context"
	"errors"
	"fmt"
	"io"

	"github.com/quicprochat/qpcd/cmd/qpc/internal/home"
	"github.com/quicprochat/qpcd/pkg/client"
	"github.com/quicprochat/qpcd/pkg/e2ee"
	"github.com/quicprochat/qpcd/pkg/qpcpb"
	"github.com/quicprochat/qpcd/pkg/rpc"
	"github.com/quicprochat/qpcd/pkg/store"
	"github.com/quicprochat/qpcd/pkg/transport"
	"github.com/quicprochat/qpcd/pkg/username"
)

// The exit codes. Scripts rely on them: never reuse one.
const (
	exitOK            = 0
	exitFailed        = 1
	exitUsage         = 2
	exitInUse         = 3
	exitKeyChanged    = 4
	exitWrongPassword = 5
	exitUnreachable   = 6
	exitLoggedOut     = 7
	exitServerLog     = 8
)

// usageError is what the user can mend in the command line.
type usageError struct{ error }

func (e usageError) Unwrap() error { return e.error }

// silentError ends a command that has said everything.
type silentError struct{ code int }

func (e *silentError) Error() string { return "failed" }

// unreachableError is a failed attempt to connect: nothing was sent.
type unreachableError struct {
	server string
	cause  error
}

func (e *unreachableError) Error() string {
	return fmt.Sprintf("the server %s cannot be reached: %v", e.server, reason(e.cause))
}

func (e *unreachableError) Unwrap() error { return e.cause }

// reason takes the address, which was named already, off an error.
func reason(err error) error {
	for _, known := range []error{transport.ErrNothingListens, transport.ErrNoAnswer, context.DeadlineExceeded} {
		if errors.Is(err, known) {
			return known
		}
	}
	return err
}

// inUseError is a profile that another process has open.
type inUseError struct{ profile home.Profile }

func (e *inUseError) Error() string {
	return fmt.Sprintf("the account %s is in use: another qpc on this machine has it open", e.profile)
}

func (e *inUseError) Unwrap() error { return store.ErrLocked }

// hinted is an error with a next step.
type hinted struct {
	error
	hint string
}

func (e *hinted) Unwrap() error { return e.error }

func withHint(err error, format string, args ...any) error {
	return &hinted{err, fmt.Sprintf(format, args...)}
}

// An outcome is a row of the table of exit codes: which errors it is for, and
// the next step unless the error has a better one.
type outcome struct {
	code int
	when string
	is   func(error) bool
	hint string
}

// outcomes is the one table of exit codes. The row without a test is for every
// other error.
func outcomes() []outcome {
	return []outcome{
		{code: exitOK, when: "done", is: func(err error) bool { return err == nil }},
		{code: exitFailed, when: "failed"},
		{exitUsage, "wrong usage", isType[usageError], ""},
		{exitUsage, "", isType[*home.ErrAmbiguous], "say which with --profile NAME, and --server HOST:PORT if need be"},
		{exitInUse, "the account is in use by another qpc", isError(store.ErrLocked), "end that one, or act as another account with --profile NAME"},
		{exitKeyChanged, "the server's key has changed", isType[*transport.ErrPinChanged], ""},
		{exitWrongPassword, "wrong password", isError(e2ee.ErrPassword), ""},
		{exitWrongPassword, "", isCode(qpcpb.CodeBadCredentials), ""},
		{exitUnreachable, "the server cannot be reached", isType[*unreachableError], "start qpcd there, or name another server with --server HOST:PORT"},
		{exitUnreachable, "", isError(client.ErrOffline), ""},
		{exitLoggedOut, "logged out", isError(client.ErrLoginRequired), "qpc login"},
		{exitLoggedOut, "", isCode(qpcpb.CodeUnauthenticated), "qpc login"},
		{exitServerLog, "the server does not prove what it says", isType[*client.ErrServerLog], ""},
		{exitServerLog, "", isType[*client.ErrDeliveryProof], ""},

		{exitFailed, "", isError(home.ErrNone), "make an account with: qpc register NAME"},
		{exitFailed, "", isError(username.ErrInvalid), ""},
		{exitFailed, "", isCode(qpcpb.CodeUserNotFound), "qpc users lists everybody on the server"},
		{exitFailed, "", isCode(qpcpb.CodeNameTaken), "choose another name"},
		{exitFailed, "", isCode(qpcpb.CodeInviteInvalid), "ask whoever runs the server for a new link; each works once"},
		{exitFailed, "", isCode(qpcpb.CodeInviteRequired), "ask whoever runs the server for an invite, then: qpc register NAME --invite CODE"},
	}
}

func isError(target error) func(error) bool {
	return func(err error) bool { return errors.Is(err, target) }
}

func isType[T error](err error) bool {
	_, ok := errors.AsType[T](err)
	return ok
}

func isCode(code qpcpb.Code) func(error) bool {
	return func(err error) bool { return rpc.CodeOf(err) == code }
}

// describe says what to exit with and what to tell.
func describe(err error) (code int, text, hint string) {
	code, text = exitFailed, err.Error()
	for _, o := range outcomes() {
		if o.is != nil && o.is(err) {
			code, hint = o.code, o.hint
			break
		}
	}
	// What stands around these says nothing more.
	if e, ok := errors.AsType[*unreachableError](err); ok {
		text = e.Error()
	}
	if e, ok := errors.AsType[*transport.ErrPinChanged](err); ok {
		text = e.Error()
		hint = "qpc trust forget " + e.Server
	}
	if e, ok := errors.AsType[*client.ErrIdentityChanged](err); ok {
		text = e.Error()
	}
	if e, ok := errors.AsType[*client.ErrServerLog](err); ok {
		text = e.Error()
	}
	if e, ok := errors.AsType[*client.ErrDeliveryProof](err); ok {
		text = e.Error()
	}
	if e, ok := errors.AsType[*hinted](err); ok {
		hint = e.hint
	}
	return code, text, hint
}

// writeExits writes the table for people.
func writeExits(w io.Writer) error {
	fmt.Fprintln(w, "\nExit codes:")
	for _, o := range outcomes() {
		if o.when == "" {
			continue
		}
		if _, err := fmt.Fprintf(w, "  %d  %s\n", o.code, o.when); err != nil {
			return err
		}
	}
	return nil
}
