package owner

import (
	"context"
	"encoding/hex"
	"fmt"
	"io"
	"strings"
	"time"

	"golang.org/x/term"

	"github.com/quicprochat/qpcd/cmd/qpcd/internal/command"
	"github.com/quicprochat/qpcd/cmd/qpcd/internal/fingerprint"
	"github.com/quicprochat/qpcd/pkg/qpcpb"
	"github.com/quicprochat/qpcd/pkg/rpc"
)

// UsersList lists the accounts, or those whose name begins with the argument.
func UsersList(ctx context.Context, c *command.Call) error {
	m, err := accounts(ctx, c, c.Args[0])
	return answer(c, m, err, func(w io.Writer, m *qpcpb.ListAccountsResponse) error {
		var rows [][]string
		for _, a := range m.Accounts {
			rows = append(rows, []string{
				a.Username, seen(a), clock(a.RegisteredAt), fmt.Sprint(a.Devices),
				fmt.Sprint(a.QueuedMessages), size(a.QueuedBytes), size(a.BlobBytes), remarks(a),
			})
		}
		return listing(w, []string{"NAME", "SEEN", "REGISTERED", "DEVICES", "WAITING", "BYTES", "FILES", "REMARKS"}, rows, "There are no accounts.")
	})
}

func seen(a *qpcpb.AccountSummary) string {
	if a.Online {
		return "online"
	}
	return clock(a.LastSeen)
}

func remarks(a *qpcpb.AccountSummary) string {
	var words []string
	if a.Admin {
		words = append(words, "admin")
	}
	if a.Banned {
		words = append(words, "banned")
	}
	return strings.Join(words, ", ")
}

// UsersShow shows one account.
func UsersShow(ctx context.Context, c *command.Call) error {
	m, err := account(ctx, c, c.Args[0])
	return answer(c, m, err, func(w io.Writer, m *qpcpb.GetAccountResponse) error {
		a := m.Account
		rows := [][]string{
			{"Name", a.Username}, {"Identity key", hex.EncodeToString(a.IdentityKey)},
			{"Registered", clock(a.RegisteredAt)}, {"Seen", seen(a)},
			{"Waiting", fmt.Sprintf("%s, %s", count(a.QueuedMessages, "message"), size(a.QueuedBytes))},
			{"Files", size(a.BlobBytes)}, {"Admin", yes(a.Admin)},
		}
		if a.Banned {
			rows = append(rows, []string{"Banned", until(m.BanExpiresAt) + ": " + m.BanReason})
		}
		rows = append(rows, many("Devices", m.Devices, func(d *qpcpb.Device) string {
			return fmt.Sprintf("%x %s", d.DeviceId, d.DeviceName)
		})...)
		return table(w, nil, rows)
	})
}

func until(expires uint64) string {
	if expires == 0 {
		return "for good"
	}
	return "until " + clock(expires)
}

// UsersDelete deletes an account.
func UsersDelete(ctx context.Context, c *command.Call) error {
	name := c.Args[0]
	if err := confirm(c, fmt.Sprintf("This deletes the account %s with all its messages and keys, for good.", clean(name)), name); err != nil {
		return err
	}
	m, err := stub(c).RemoveAccount(ctx, &qpcpb.RemoveAccountRequest{Username: name, FreeName: c.Is("free-name")})
	return answer(c, m, err, func(w io.Writer, _ *qpcpb.RemoveAccountResponse) error {
		rest := "Its name rests for 30 days."
		if c.Is("free-name") {
			rest = "Its name can be registered again."
		}
		_, err := fmt.Fprintf(w, "The account %s is deleted. %s\n", clean(name), rest)
		return err
	})
}

// UsersResetPassword makes a code that registers a name anew.
func UsersResetPassword(ctx context.Context, c *command.Call) error {
	m, err := stub(c).ResetPassword(ctx, &qpcpb.ResetPasswordRequest{Username: c.Args[0], ValidSecs: seconds(c)})
	return answer(c, m, err, func(w io.Writer, m *qpcpb.ResetPasswordResponse) error {
		if err := handOut(c, w, m.Code, m.Link, m.ExpiresAt); err != nil {
			return err
		}
		_, err := fmt.Fprintf(w, "\nWho has it registers %s anew, with a new key: contacts will be warned, and messages\nthat wait are lost. Until then the account works as before.\n", clean(c.Args[0]))
		return err
	})
}

func seconds(c *command.Call) uint32 { return uint32(c.Duration("valid", 0) / time.Second) }

// handOut prints a code in the forms in which it is passed on.
func handOut(c *command.Call, w io.Writer, code, link string, expires int64) error {
	err := table(w, nil, [][]string{{"Code", code}, {"Link", link}, {"Valid until", clock(expires)}, {"Use", "qpc join '" + link + "'"}})
	if err == nil && term.IsTerminal(int(c.Out.Fd())) {
		fmt.Fprintln(w)
		err = fingerprint.WriteQR(w, link, true)
	}
	return err
}

// InvitesCreate makes a code for a new account.
func InvitesCreate(ctx context.Context, c *command.Call) error {
	m, err := stub(c).CreateInvite(ctx, &qpcpb.CreateInviteRequest{ValidSecs: seconds(c), Note: c.Text("note")})
	return answer(c, m, err, func(w io.Writer, m *qpcpb.CreateInviteResponse) error {
		return handOut(c, w, m.Code, m.Link, m.Invite.ExpiresAt)
	})
}

// InvitesList lists the open codes, without the codes.
func InvitesList(ctx context.Context, c *command.Call) error {
	m, err := stub(c).ListInvites(ctx, &qpcpb.ListInvitesRequest{})
	return answer(c, m, err, func(w io.Writer, m *qpcpb.ListInvitesResponse) error {
		var rows [][]string
		for _, i := range m.Invites {
			purpose := "new account"
			if i.Username != "" {
				purpose = "resets " + i.Username
			}
			rows = append(rows, []string{i.Id, purpose, clock(i.CreatedAt), clock(i.ExpiresAt), i.Note})
		}
		return listing(w, []string{"ID", "FOR", "CREATED", "EXPIRES", "NOTE"}, rows, "No code is open.")
	})
}

// InvitesRevoke makes a code worthless.
func InvitesRevoke(ctx context.Context, c *command.Call) error {
	m, err := stub(c).RevokeInvite(ctx, &qpcpb.RevokeInviteRequest{Id: c.Args[0]})
	return answer(c, m, err, done[*qpcpb.RevokeInviteResponse]("The code %s is worthless now.", clean(c.Args[0])))
}

// DevicesList lists the devices of an account.
func DevicesList(ctx context.Context, c *command.Call) error {
	m, err := account(ctx, c, c.Args[0])
	if err != nil {
		return err
	}
	return answer(c, &qpcpb.ListDevicesResponse{Devices: m.Devices}, nil, func(w io.Writer, m *qpcpb.ListDevicesResponse) error {
		var rows [][]string
		for _, d := range m.Devices {
			rows = append(rows, []string{hex.EncodeToString(d.DeviceId), d.DeviceName, clock(d.RegisteredAt), clock(d.LastSeen)})
		}
		return listing(w, []string{"ID", "NAME", "REGISTERED", "SEEN"}, rows, "There are no devices.")
	})
}

// DevicesRevoke ends a device of an account. The first digits of its id do when
// they name one.
func DevicesRevoke(ctx context.Context, c *command.Call) error {
	name, prefix := c.Args[0], strings.ToLower(c.Args[1])
	found, err := account(ctx, c, name)
	if err != nil {
		return err
	}
	var ids []rpc.DeviceID
	for _, d := range found.Devices {
		if id := rpc.DeviceID(d.DeviceId); strings.HasPrefix(id.String(), prefix) {
			ids = append(ids, id)
		}
	}
	if len(ids) != 1 {
		return fmt.Errorf("%s of %s have an id that begins with %q; qpcd devices list %s shows them", count(uint64(len(ids)), "device"), clean(name), prefix, clean(name))
	}
	m, err := stub(c).RemoveAccountDevice(ctx, &qpcpb.RemoveAccountDeviceRequest{Username: name, DeviceId: ids[0][:]})
	return answer(c, m, err, done[*qpcpb.RemoveAccountDeviceResponse]("The device %s of %s is revoked.", ids[0], clean(name)))
}
