package client

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"github.com/quicprochat/qpcd/pkg/e2ee"
	"github.com/quicprochat/qpcd/pkg/qpcpb"
	"github.com/quicprochat/qpcd/pkg/rpc"
	"github.com/quicprochat/qpcd/pkg/tlog"
	"github.com/quicprochat/qpcd/pkg/username"
)

// Contact is a peer, as a program shows it.
type Contact struct {
	Identity rpc.IdentityKey
	Name     string
	// Verified is set once the user has compared safety numbers.
	Verified bool
}

// ErrIdentityChanged says that the server gives another identity key for a
// name than it gave before.
type ErrIdentityChanged struct {
	Name             string
	Known, Presented rpc.IdentityKey
}

func (e *ErrIdentityChanged) Error() string {
	return fmt.Sprintf(`THE KEY OF %s HAS CHANGED; nothing was sent.
Either %s has set up their account anew, or somebody is impersonating them.
  known:     %s
  presented: %s
Ask %s in person. If it is true, accept the new key with
  qpc verify --accept %s`, strings.ToUpper(e.Name), e.Name, e.Known, e.Presented, e.Name, e.Name)
}

// lookUp returns the contact of a name, asking the server once in the life of
// the program whether the name is still bound to the same key.
func (c *Client) lookUp(ctx context.Context, name string) (contact, error) {
	folded, err := c.foldName(ctx, name)
	if err != nil {
		return contact{}, err
	}
	known, identity, err := c.knownName(ctx, folded)
	if err != nil {
		return contact{}, err
	}
	c.mu.Lock()
	fresh := known && c.fresh[identity]
	c.mu.Unlock()
	if !fresh {
		l, err := c.online()
		if err != nil {
			if known {
				return c.contact(ctx, identity) // what is known must do until the server is back
			}
			return contact{}, fmt.Errorf("%s is not known yet: %w", folded, err)
		}
		presented, err := c.resolve(ctx, l, folded)
		if err != nil {
			return contact{}, err
		}
		if known && presented != identity {
			return contact{}, &ErrIdentityChanged{Name: folded, Known: identity, Presented: presented}
		}
		identity = presented
		if err := c.bindName(ctx, identity, folded); err != nil {
			return contact{}, err
		}
		c.mu.Lock()
		c.fresh[identity] = true
		c.mu.Unlock()
	}
	return c.contact(ctx, identity)
}

func (c *Client) knownName(ctx context.Context, folded string) (known bool, identity rpc.IdentityKey, err error) {
	known, err = c.box.get(ctx, nameKey(folded), &identity)
	return known, identity, err
}

// contact returns the record of a peer, empty but for the key when there is
// none.
func (c *Client) contact(ctx context.Context, identity rpc.IdentityKey) (contact, error) {
	p := contact{Identity: identity}
	_, err := c.box.get(ctx, contactKey(identity), &p)
	return p, err
}

// update changes the record of a peer. The caller does not hold c.mu.
func (c *Client) update(ctx context.Context, identity rpc.IdentityKey, change func(*contact)) (contact, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	p, err := c.contact(ctx, identity)
	if err != nil {
		return p, err
	}
	change(&p)
	b := c.box.batch()
	b.put(contactKey(identity), p)
	return p, b.apply(ctx)
}

// bindName remembers whose name it is.
func (c *Client) bindName(ctx context.Context, identity rpc.IdentityKey, folded string) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	p, err := c.contact(ctx, identity)
	if err != nil || p.Name == folded {
		return err
	}
	p.Name = folded
	b := c.box.batch()
	b.put(contactKey(identity), p)
	b.put(nameKey(folded), identity)
	return b.apply(ctx)
}

// isDomain reports whether s may stand behind the @ of a name: labels of small
// letters, digits and hyphens (RFC 1123, section 2.1), as servers are named.
func isDomain(s string) bool {
	const maxDomain, maxLabel = 253, 63
	if len(s) > maxDomain {
		return false
	}
	for label := range strings.SplitSeq(s, ".") {
		if label == "" || len(label) > maxLabel || strings.Trim(label, "abcdefghijklmnopqrstuvwxyz0123456789-") != "" {
			return false
		}
	}
	return true
}

// foldName returns the one form of a name, or of name@domain for somebody on
// another server. A name at this server's own domain is one without a domain.
func (c *Client) foldName(ctx context.Context, name string) (string, error) {
	local, domain, elsewhere := strings.Cut(name, "@")
	folded, err := username.Fold(local)
	if err != nil || !elsewhere {
		return folded, err
	}
	domain = strings.ToLower(domain)
	if !isDomain(domain) {
		return "", fmt.Errorf("%w: what stands behind the @ is no domain", username.ErrInvalid)
	}
	c.mu.Lock()
	known, _, err := c.storedLog(ctx)
	c.mu.Unlock()
	if err != nil || known.Origin == tlog.Origin(domain) {
		return folded, err
	}
	return folded + "@" + domain, nil
}

// nameOf returns a peer's name, asking the server when it is not known yet. It
// is empty when the server does not say, says a name that belongs to another
// key here, or does not prove that the name is theirs.
func (c *Client) nameOf(ctx context.Context, identity rpc.IdentityKey) string {
	p, err := c.contact(ctx, identity)
	if err != nil || p.Name != "" {
		return p.Name
	}
	l, err := c.online()
	if err != nil {
		return ""
	}
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	response, err := qpcpb.NewDirectoryClient(l.rpc).ResolveIdentity(ctx, &qpcpb.ResolveIdentityRequest{IdentityKey: identity[:]})
	if err != nil {
		return ""
	}
	folded, err := c.foldName(ctx, response.Username)
	if err != nil {
		return ""
	}
	// The name counts only when it leads back to the key.
	bound, err := c.resolve(ctx, l, folded)
	if errors.As(err, new(*ErrServerLog)) {
		c.options.Log.Error("a name is not believed", "error", err)
		c.emit(ctx, Event{Kind: EventDistrust, Peer: identity, Err: err})
	}
	if err != nil || bound != identity {
		return ""
	}
	if known, other, err := c.knownName(ctx, folded); err != nil || known && other != identity {
		return ""
	}
	if err := c.bindName(ctx, identity, folded); err != nil {
		c.options.Log.Warn("a name is not remembered", "error", err)
	}
	return folded
}

// AcceptIdentity takes the key that the server now gives for a name in place
// of the one known. The user must have made sure of it.
func (c *Client) AcceptIdentity(ctx context.Context, name string) (Contact, error) {
	folded, err := c.foldName(ctx, name)
	if err != nil {
		return Contact{}, err
	}
	var identity rpc.IdentityKey
	err = c.Call(ctx, func(ctx context.Context, calls *rpc.Client) error {
		identity, err = c.resolve(ctx, &link{rpc: calls}, folded)
		return err
	})
	if err != nil {
		return Contact{}, err
	}
	if known, old, err := c.knownName(ctx, folded); err != nil {
		return Contact{}, err
	} else if known && old != identity {
		if _, err := c.update(ctx, old, func(p *contact) { p.Name, p.Verified = "", false }); err != nil {
			return Contact{}, err
		}
	}
	return Contact{Identity: identity, Name: folded}, c.bindName(ctx, identity, folded)
}

// FindContact returns a contact by name. A name never met is looked up at the
// server.
func (c *Client) FindContact(ctx context.Context, name string) (Contact, error) {
	p, err := c.lookUp(ctx, name)
	return Contact{Identity: p.Identity, Name: p.Name, Verified: p.Verified}, err
}

// LookUp is FindContact with a connection of its own, for a program that runs
// one command.
func (c *Client) LookUp(ctx context.Context, name string) (Contact, error) {
	folded, err := c.foldName(ctx, name)
	if err != nil {
		return Contact{}, err
	}
	var found Contact
	err = c.Call(ctx, func(ctx context.Context, calls *rpc.Client) error {
		identity, err := c.resolve(ctx, &link{rpc: calls}, folded)
		if err != nil {
			return err
		}
		if known, old, err := c.knownName(ctx, folded); err != nil {
			return err
		} else if known && old != identity {
			return &ErrIdentityChanged{Name: folded, Known: old, Presented: identity}
		}
		if err := c.bindName(ctx, identity, folded); err != nil {
			return err
		}
		p, err := c.contact(ctx, identity)
		found = Contact{Identity: identity, Name: folded, Verified: p.Verified}
		return err
	})
	return found, err
}

// Contacts returns everybody this client has met, by name.
func (c *Client) Contacts(ctx context.Context) ([]Contact, error) {
	var all []Contact
	err := list(ctx, c.box, prefixContact, func(_ string, p contact) (bool, error) {
		all = append(all, Contact{Identity: p.Identity, Name: p.Name, Verified: p.Verified})
		return true, nil
	})
	return all, err
}

// SetVerified notes that the user has compared the safety number of a contact.
func (c *Client) SetVerified(ctx context.Context, identity rpc.IdentityKey, verified bool) error {
	_, err := c.update(ctx, identity, func(p *contact) { p.Verified = verified })
	return err
}

// SafetyNumber returns the 60 digits that both sides of a conversation
// compare.
func (c *Client) SafetyNumber(peer rpc.IdentityKey) string {
	return e2ee.SafetyNumber(c.self.Key(), e2ee.IdentityKey(peer))
}
