package transparency

import (
	"github.com/quicprochat/qpcd/pkg/store"
	"github.com/quicprochat/qpcd/pkg/tlog"
)

// AppendTx appends a leaf of any hash.
func (s *Service) AppendTx(tx *store.Tx, leaf tlog.Hash) (uint64, error) { return s.appendTx(tx, leaf) }
