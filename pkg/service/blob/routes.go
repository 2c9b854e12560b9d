package blob

import (
	"context"
	"errors"
	"fmt"
	"io"
	"time"

	"github.com/quicprochat/qpcd/pkg/qpcpb"
	"github.com/quicprochat/qpcd/pkg/rpc"
	"github.com/quicprochat/qpcd/pkg/store"
)

var _ qpcpb.BlobServer = (*Service)(nil)

// seconds of service time from now.
func (s *Service) until(d time.Duration) int64 {
	return s.options.DB.ServiceTime() + int64(d/time.Second)
}

// existsTx refuses to store anything for an account that was deleted while the
// call was on its way: nobody would remove it again.
func (s *Service) existsTx(tx *store.Tx, identity rpc.IdentityKey) error {
	ok, err := s.options.Accounts.ExistsTx(tx, identity)
	if err == nil && !ok {
		err = rpc.Errorf(qpcpb.CodeUnauthenticated, "this account has been deleted; register to use the server again")
	}
	return err
}

func offsetError(next int64) error {
	return rpc.Errorf(qpcpb.CodeBlobOffset, "%d bytes are stored; go on from there", next)
}

// UploadBlob stores the next chunk of a blob, or tells where to go on (method
// 600).
func (s *Service) UploadBlob(ctx context.Context, request *qpcpb.UploadBlobRequest) (*qpcpb.UploadBlobResponse, error) {
	identity := rpc.PrincipalOf(ctx).Identity
	a, err := parseUpload(request)
	if err != nil {
		return nil, err
	}
	if wait, ok := s.chunks.Take(identity, 1); !ok {
		return nil, rpc.Errorf(qpcpb.CodeRateLimited, "you send chunks faster than %d a second; wait a moment", chunkRate).After(wait)
	}
	unlock, err := s.locks.lock(ctx, a.hash)
	if err != nil {
		return nil, err
	}
	defer unlock()
	next, whole, err := s.upload(ctx, identity, a)
	if err != nil {
		return nil, s.told(err)
	}
	response := &qpcpb.UploadBlobResponse{NextOffset: uint64(next)}
	if whole {
		response.BlobId = a.hash[:]
	}
	return response, nil
}

// upload does the work of UploadBlob under the lock of the hash.
func (s *Service) upload(ctx context.Context, identity rpc.IdentityKey, a ask) (next int64, whole bool, err error) {
	there, err := s.claim(ctx, identity, a)
	if err != nil || there {
		return a.size, there, err
	}
	u, placed, err := s.resume(ctx, identity, a)
	switch {
	case err != nil:
		return 0, false, err
	case placed:
		return a.size, true, s.finish(ctx, u, true)
	case u == nil && len(a.chunk) == 0:
		return 0, false, nil
	case u == nil && a.offset != 0:
		return 0, false, offsetError(0)
	case u == nil:
		if u, err = s.begin(ctx, identity, a); err != nil {
			return 0, false, err
		}
	case len(a.chunk) == 0:
		return u.stored, false, nil
	case a.offset != u.stored:
		return 0, false, offsetError(u.stored)
	}
	if err := s.write(u, a.chunk); err != nil {
		if u.stored == 0 { // nothing was promised but the room
			err = errors.Join(err, s.drop(context.WithoutCancel(ctx), u))
		}
		return 0, false, err
	}
	stored := u.stored + int64(len(a.chunk))
	if stored == u.size {
		return stored, true, s.finish(ctx, u, false)
	}
	return stored, false, s.advance(ctx, u, stored)
}

// claim gives the caller a claim on a blob that is stored already, or renews
// it. It reports false when there is no such blob.
func (s *Service) claim(ctx context.Context, identity rpc.IdentityKey, a ask) (there bool, err error) {
	var stored int64
	if err := s.options.DB.Read(ctx, func(tx *store.Tx) (err error) {
		stored, err = readBlobSize(tx, a.hash)
		return err
	}); err != nil || stored == 0 {
		return false, err
	}
	if stored != a.size {
		return false, rpc.Errorf(qpcpb.CodeInvalidField, "total_size is %d where the blob of this hash has %d bytes", a.size, stored)
	}
	switch found, err := fileSize(s.disk.blobPath(a.hash)); {
	case err != nil:
		return false, err
	case found != stored:
		return false, s.lose(ctx, a.hash, fmt.Errorf("%w: it has %d bytes where %d are wanted", errDamaged, found, stored))
	}
	err = s.options.DB.Write(ctx, func(tx *store.Tx) error {
		// A sweep may have taken it since.
		if size, err := readBlobSize(tx, a.hash); err != nil || size == 0 {
			return err
		}
		there = true
		return s.claimTx(tx, identity, a.hash, a.size)
	})
	return there && err == nil, err
}

// claimTx puts or renews a claim, in place of an upload of the same blob.
func (s *Service) claimTx(tx *store.Tx, identity rpc.IdentityKey, hash Hash, size int64) error {
	if err := s.existsTx(tx, identity); err != nil {
		return err
	}
	u, err := readUpload(tx, identity, hash)
	if err != nil {
		return err
	}
	if u != nil {
		if _, err := deleteUpload(tx, u); err != nil {
			return err
		}
		tx.AfterCommit(func() { s.gone.add(nil, []part{u.part}) })
	}
	known, err := hasClaim(tx, identity, hash)
	if err != nil {
		return err
	}
	if !known {
		h, err := readHoldings(tx, identity)
		if err != nil {
			return err
		}
		if err := h.room(size, false); err != nil {
			return err
		}
	}
	return putClaim(tx, identity, hash, size, s.until(lifetime))
}

// resume finds the caller's upload of a blob, nil when there is none. placed
// tells that a crash came after the file had its name and before the row.
func (s *Service) resume(ctx context.Context, identity rpc.IdentityKey, a ask) (u *upload, placed bool, err error) {
	err = s.options.DB.Read(ctx, func(tx *store.Tx) error {
		u, err = readUpload(tx, identity, a.hash)
		return err
	})
	if err != nil || u == nil {
		return nil, false, err
	}
	if u.size != a.size {
		return nil, false, rpc.Errorf(qpcpb.CodeInvalidField, "total_size is %d where this upload began with %d", a.size, u.size)
	}
	there, placed, err := s.inspect(u)
	if err != nil || there {
		return u, placed, err
	}
	s.options.Log.Error("an upload has lost its file and begins again", "blob", u.hash)
	return nil, false, s.drop(ctx, u)
}

// inspect looks whether the file of an upload is there: its part, or when it
// is placed the whole.
func (s *Service) inspect(u *upload) (there, placed bool, err error) {
	found, err := fileSize(s.disk.partPath(u.part))
	if err != nil || found >= u.stored {
		return err == nil, false, err
	}
	if found < 0 {
		found, err = fileSize(s.disk.blobPath(u.hash))
		if err != nil || found == u.size {
			return err == nil, err == nil, err
		}
	}
	// With nothing stored there need not be a file.
	return u.stored == 0, false, nil
}

// begin makes the row of an upload, if there is room for all of it.
func (s *Service) begin(ctx context.Context, identity rpc.IdentityKey, a ask) (*upload, error) {
	u := &upload{owner: identity, hash: a.hash, size: a.size, mime: a.mime}
	if _, err := io.ReadFull(s.options.Rand, u.part[:]); err != nil {
		return nil, fmt.Errorf("name a part: %w", err)
	}
	if err := s.step("begin"); err != nil {
		return nil, err
	}
	err := s.options.DB.Write(ctx, func(tx *store.Tx) error {
		if err := s.existsTx(tx, identity); err != nil {
			return err
		}
		h, err := readHoldings(tx, identity)
		if err != nil {
			return err
		}
		if err := h.room(a.size, true); err != nil {
			return err
		}
		t, err := readTotal(tx)
		if err != nil {
			return err
		}
		if err := t.room(a.size, s.options.Quota); err != nil {
			return err
		}
		return insertUpload(tx, u, s.until(uploadLifetime))
	})
	if err != nil {
		return nil, err
	}
	return u, s.step("begun")
}

func (s *Service) write(u *upload, chunk []byte) error {
	if err := s.step("write"); err != nil {
		return diskError("write an upload", err)
	}
	if err := s.disk.write(u.part, u.stored, chunk); err != nil {
		return err
	}
	if err := s.step("written"); err != nil {
		return diskError("write an upload", err)
	}
	return nil
}

// advance notes how much of an upload is stored.
func (s *Service) advance(ctx context.Context, u *upload, stored int64) error {
	if err := s.step("advance"); err != nil {
		return err
	}
	there := false
	err := s.options.DB.Write(ctx, func(tx *store.Tx) (err error) {
		there, err = advance(tx, u, stored, s.until(uploadLifetime))
		return err
	})
	if err != nil {
		return err
	}
	if !there {
		return s.vanished(u)
	}
	return s.step("advanced")
}

// vanished answers a call whose upload went while it was under way: with the
// account, or because its time was over.
func (s *Service) vanished(u *upload) error {
	s.gone.add([]Hash{u.hash}, []part{u.part})
	return offsetError(0)
}

// drop removes an upload with its part.
func (s *Service) drop(ctx context.Context, u *upload) error {
	err := s.options.DB.Write(ctx, func(tx *store.Tx) error {
		_, err := deleteUpload(tx, u)
		return err
	})
	if err != nil {
		return err
	}
	return s.disk.removePart(u.part)
}

// finish makes an upload, all of which is on the disk, a blob.
func (s *Service) finish(ctx context.Context, u *upload, placed bool) error {
	path := s.disk.partPath(u.part)
	if placed {
		path = s.disk.blobPath(u.hash)
	}
	select {
	case s.hashing <- struct{}{}:
	case <-ctx.Done():
		return ctx.Err()
	}
	hash, checks, err := digest(ctx, path, u.size)
	<-s.hashing
	if err != nil {
		return err
	}
	if hash != u.hash {
		err := s.drop(ctx, u)
		if placed {
			err = errors.Join(err, s.disk.removeBlob(u.hash))
		}
		if err != nil {
			return err
		}
		return rpc.Errorf(qpcpb.CodeBlobMismatch, "the whole does not have the hash that it was announced under; nothing is kept, send it again")
	}
	if err := s.step("place"); err != nil {
		return err
	}
	if !placed {
		if err := s.disk.place(u.part, u.hash); err != nil {
			return err
		}
	}
	if err := s.step("placed"); err != nil {
		return err
	}
	there := false
	err = s.options.DB.Write(ctx, func(tx *store.Tx) error {
		if err := s.existsTx(tx, u.owner); err != nil {
			return err
		}
		if there, err = deleteUpload(tx, u); err != nil || !there {
			return err
		}
		if err := insertBlob(tx, u.hash, record{size: u.size, mime: u.mime, checks: checks}); err != nil {
			return err
		}
		return putClaim(tx, u.owner, u.hash, u.size, s.until(lifetime))
	})
	if rpc.CodeOf(err) == qpcpb.CodeUnauthenticated {
		s.gone.add([]Hash{u.hash}, nil)
	}
	if err != nil {
		return err
	}
	if !there {
		return s.vanished(u)
	}
	return s.step("finished")
}

// DownloadBlob returns a part of a blob (method 601).
func (s *Service) DownloadBlob(ctx context.Context, request *qpcpb.DownloadBlobRequest) (*qpcpb.DownloadBlobResponse, error) {
	hash, err := parseHash("blob_id", request.BlobId)
	if err != nil {
		return nil, err
	}
	r, err := s.find(ctx, hash)
	if err != nil {
		return nil, err
	}
	offset, length, err := portion(request, r.size)
	if err != nil {
		return nil, err
	}
	response := &qpcpb.DownloadBlobResponse{TotalSize: uint64(r.size), MimeType: r.mime}
	if length == 0 {
		return response, nil
	}
	// For what is read, and for the frame that a part of it is copied to.
	from, to := span(offset, length, r.size)
	if err := rpc.ReserveMemory(ctx, int(to-from+length)); err != nil {
		return nil, err
	}
	response.Chunk, err = s.disk.read(hash, r, offset, length)
	if errors.Is(err, errDamaged) {
		response.Chunk, err = s.examine(ctx, hash, offset, length)
	}
	if err != nil {
		return nil, s.told(err)
	}
	return response, nil
}

// told logs a failure of the disk, which nobody else does: its answer says
// nothing of the cause. Errors of the tables and a full disk are the server's
// to tell.
func (s *Service) told(err error) error {
	if rpc.CodeOf(err) == qpcpb.CodeStorageFailed {
		s.options.Log.Error("the files of blobs cannot be used", "error", err)
	}
	return err
}

// find returns the row of a blob that somebody claims.
func (s *Service) find(ctx context.Context, hash Hash) (r *record, err error) {
	err = s.options.DB.Read(ctx, func(tx *store.Tx) error {
		r, err = readBlob(tx, hash, s.options.DB.ServiceTime())
		return err
	})
	if err == nil && (r == nil || !r.claimed) {
		err = rpc.Errorf(qpcpb.CodeBlobNotFound, "there is no such file, or its time is over; ask for it to be sent again")
	}
	return r, err
}

// examine reads again what seemed damaged, now that nobody replaces it. If it
// is, the blob is lost.
func (s *Service) examine(ctx context.Context, hash Hash, offset, length int64) ([]byte, error) {
	unlock, err := s.locks.lock(ctx, hash)
	if err != nil {
		return nil, err
	}
	defer unlock()
	r, err := s.find(ctx, hash)
	if err != nil {
		return nil, err
	}
	chunk, err := s.disk.read(hash, r, offset, length)
	if !errors.Is(err, errDamaged) {
		return chunk, err
	}
	if err := s.lose(ctx, hash, err); err != nil {
		return nil, err
	}
	return nil, rpc.Errorf(qpcpb.CodeBlobNotFound, "the file was damaged on the server's disk; ask for it to be sent again")
}

// lose removes a blob whose file is not what it was. The caller holds the lock
// of its hash.
func (s *Service) lose(ctx context.Context, hash Hash, why error) error {
	s.options.Log.Error("a stored file is lost; its rows are removed", "blob", hash, "reason", why)
	if err := s.options.DB.Write(ctx, func(tx *store.Tx) error { return deleteBlob(tx, hash) }); err != nil {
		return err
	}
	return s.disk.removeBlob(hash)
}
