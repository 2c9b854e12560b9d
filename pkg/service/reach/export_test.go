package reach

import "time"

// SetPace makes wake-ups come faster than once a minute. testOnly.
func (s *Service) SetPace(every time.Duration) { s.every = every }
