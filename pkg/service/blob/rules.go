package blob

import (
	"github.com/quicprochat/qpcd/pkg/qpcpb"
	"github.com/quicprochat/qpcd/pkg/rpc"
)

// ask is an UploadBlob request that makes sense by itself.
type ask struct {
	hash   Hash
	size   int64 // of the whole
	mime   string
	chunk  []byte // empty: where to go on?
	offset int64
}

func parseHash(field string, b []byte) (hash Hash, err error) {
	if len(b) != len(hash) {
		return hash, rpc.Errorf(qpcpb.CodeInvalidField, "%s has %d bytes where %d are wanted", field, len(b), len(hash))
	}
	return Hash(b), nil
}

func parseUpload(request *qpcpb.UploadBlobRequest) (a ask, err error) {
	if a.hash, err = parseHash("blob_hash", request.BlobHash); err != nil {
		return a, err
	}
	switch {
	case request.TotalSize == 0:
		return a, rpc.Errorf(qpcpb.CodeInvalidField, "total_size is 0; an empty blob cannot be stored")
	case request.TotalSize > MaxSize:
		return a, rpc.Errorf(qpcpb.CodePayloadTooLarge, "the blob has %d bytes where %d are allowed", request.TotalSize, MaxSize)
	case len(request.Chunk) > MaxChunk:
		return a, rpc.Errorf(qpcpb.CodePayloadTooLarge, "the chunk has %d bytes where %d are allowed", len(request.Chunk), MaxChunk)
	case !isMIME(request.MimeType):
		return a, rpc.Errorf(qpcpb.CodeInvalidField, "mime_type is not up to %d printable ASCII characters", maxMIME)
	}
	a.size, a.mime, a.chunk = int64(request.TotalSize), request.MimeType, request.Chunk
	if a.mime == "" {
		a.mime = defaultMIME
	}
	if len(a.chunk) == 0 {
		return a, nil // the offset is what it asks for
	}
	if request.Offset > request.TotalSize || uint64(len(a.chunk)) > request.TotalSize-request.Offset {
		return a, rpc.Errorf(qpcpb.CodeInvalidField, "the chunk goes past total_size")
	}
	a.offset = int64(request.Offset)
	return a, nil
}

// isMIME accepts more than RFC 6838 does: parameters too, and what is none at
// all. Nobody here acts on it.
func isMIME(s string) bool {
	for i := range len(s) {
		if s[i] < ' ' || s[i] > '~' {
			return false
		}
	}
	return len(s) <= maxMIME
}

// holdings are what counts for an identity.
type holdings struct {
	bytes   int64 // of blobs and uploads, with their full size
	blobs   int64
	uploads int64
}

// room says whether an identity may have one more blob of size bytes; upload
// tells that it is to be uploaded first.
func (h holdings) room(size int64, upload bool) error {
	switch {
	case upload && h.uploads >= MaxUploads:
		return rpc.Errorf(qpcpb.CodeQuotaExceeded, "%d of your uploads are unfinished; finish one, or wait a day", h.uploads)
	case h.blobs+h.uploads >= MaxBlobs:
		return rpc.Errorf(qpcpb.CodeQuotaExceeded, "you have %d files stored where %d are allowed; the oldest goes after 30 days", h.blobs+h.uploads, MaxBlobs)
	case size > MaxOwned-h.bytes:
		return rpc.Errorf(qpcpb.CodeQuotaExceeded, "your files would take %d bytes where %d are allowed; the oldest goes after 30 days", h.bytes+size, MaxOwned)
	}
	return nil
}

// total is what everything adds up to.
type total struct {
	blobs, bytes int64
	promised     int64 // with unfinished uploads, in disk blocks
}

// room says whether there is room for one more blob.
func (t total) room(size, quota int64) error {
	if onDisk(size) > quota-t.promised {
		return rpc.Errorf(qpcpb.CodeQuotaExceeded, "the server has no room for more files; they go 30 days after their upload")
	}
	return nil
}

// onDisk is what a file of size bytes takes of a disk.
func onDisk(size int64) int64 { return (size + diskBlock - 1) / diskBlock * diskBlock }

// portion is the part of a blob that a DownloadBlob gets.
func portion(request *qpcpb.DownloadBlobRequest, size int64) (offset, length int64, err error) {
	if request.Offset > uint64(size) {
		return 0, 0, rpc.Errorf(qpcpb.CodeInvalidField, "offset lies past the end of the blob, which has %d bytes", size)
	}
	offset, length = int64(request.Offset), int64(request.Length)
	if length == 0 || length > MaxChunk {
		length = MaxChunk
	}
	return offset, min(length, size-offset), nil
}
