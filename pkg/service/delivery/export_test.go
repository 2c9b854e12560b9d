package delivery

// Remembered returns what is remembered of a party's queues.
func (s *Service) Remembered(party int64) (messages, bytes int64, known bool) {
	s.parties.mu.Lock()
	defer s.parties.mu.Unlock()
	l, known := s.parties.loads[party]
	return l.messages, l.bytes, known
}
