package delivery

import (
	"github.com/quicprochat/qpcd/pkg/proof"
	"github.com/quicprochat/qpcd/pkg/qpcpb"
	"github.com/quicprochat/qpcd/pkg/rpc"
)

// proofOf returns the delivery proof of a stored message.
func (s *Service) proofOf(m message, stored outcome) []byte {
	return proof.SignDelivery(s.options.Key, proof.Delivery{
		Recipient: m.to.recipient, Channel: m.to.channel(), Seq: stored.seq, MessageID: m.id, PayloadHash: stored.payloadHash,
	})
}

// address is where a message goes: a recipient's inbox, or their queue of a
// channel.
type address struct {
	recipient rpc.IdentityKey
	id        rpc.ChannelID
	inChannel bool
}

// channel returns the channel id as it stands on the wire and in the queue's
// row: empty for the inbox.
func (a address) channel() []byte {
	if a.inChannel {
		return a.id[:]
	}
	return []byte{}
}

// maxSeq is the largest sequence number, that of SQLite's integers.
const maxSeq = 1<<63 - 1

// checkSize refuses a payload that its Envelope would carry past a frame.
func checkSize(payload []byte, most int) error {
	if len(payload) > most {
		return rpc.Errorf(qpcpb.CodePayloadTooLarge, "the payload has %d bytes where %d are allowed", len(payload), most)
	}
	return nil
}

// pageLimit returns how many messages an answer may hold.
func pageLimit(asked uint32) int {
	if asked == 0 || asked > maxPage {
		return maxPage
	}
	return int(asked)
}

// batchStep returns the end of the part of a batch, from start on, that one
// transaction stores: one payload for 256 recipients may be 1 GiB.
func batchStep(messages []message, start int) (end int) {
	bytes := len(messages[start].payload)
	for end = start + 1; end < len(messages); end++ {
		if bytes += len(messages[end].payload); bytes > maxBatchStep {
			break
		}
	}
	return end
}

// fits returns how many of the messages fit one answer: at least the first,
// and as many more as stay below the page's bytes.
func fits(places []place) (count, bytes int) {
	for i, at := range places {
		size := at.size + envelopeOverhead
		if i > 0 && bytes+size > maxPageBytes {
			return i, bytes
		}
		bytes += size
	}
	return len(places), bytes
}
