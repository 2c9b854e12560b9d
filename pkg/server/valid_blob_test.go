package server

import (
	"crypto/sha256"
	"strings"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"

	"github.com/quicprochat/qpcd/pkg/qpcpb"
	"github.com/quicprochat/qpcd/pkg/service/blob"
)

// blobRows are the methods of blobs.
func blobRows() map[qpcpb.MethodID]row {
	// upload is all of a small blob that nobody has stored.
	upload := func(*stage, *client) proto.Message {
		data := random(100)
		hash := sha256.Sum256(data)
		return &qpcpb.UploadBlobRequest{BlobHash: hash[:], Chunk: data, TotalSize: 100, MimeType: "application/octet-stream"}
	}
	return map[qpcpb.MethodID]row{
		qpcpb.MethodUploadBlob: {
			who: passer, valid: upload,
			fields: map[protoreflect.Name]rule{
				"blob_hash": fixed(32),
				"chunk": {
					put("a question", []byte{}, ok), put("a part", make([]byte, 99), ok), put("too long", make([]byte, 101), invalid),
					put("one too large", make([]byte, blob.MaxChunk+1), tooLarge),
				},
				"offset": number().but(invalid, "maximum"),
				"total_size": {
					put("zero", uint64(0), invalid), put("shorter than the chunk", uint64(99), invalid), put("longer", uint64(101), ok),
					put("the largest", uint64(blob.MaxSize), ok), put("one too large", uint64(blob.MaxSize+1), tooLarge), put("maximum", uint64(1<<64-1), tooLarge),
				},
				"mime_type": {
					put("empty", "", ok), put("255 letters", strings.Repeat("a", 255), ok), put("256 letters", strings.Repeat("a", 256), invalid),
					put("NUL", "text\x00plain", invalid), put("line break", "text/plain\r\n", invalid), put("umlaut", "täxt/plain", invalid),
				},
			},
		},
		qpcpb.MethodDownloadBlob: {
			valid: func(s *stage, c *client) proto.Message {
				request := upload(s, c).(*qpcpb.UploadBlobRequest)
				if _, err := qpcpb.NewBlobClient(c).UploadBlob(within(s.t), request); err != nil {
					s.t.Fatal(err)
				}
				return &qpcpb.DownloadBlobRequest{BlobId: request.BlobHash, Offset: 1, Length: 10}
			},
			fields: map[protoreflect.Name]rule{
				"blob_id": append(fixed(32), put("nobody's", make([]byte, 32), qpcpb.CodeBlobNotFound)),
				"offset":  number().but(invalid, "maximum"),
				"length":  number(),
			},
		},
	}
}
