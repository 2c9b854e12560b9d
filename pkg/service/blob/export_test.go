package blob

// TestOnlyStep has f called before and after each step that changes the disk
// or the tables. Set it while no call is under way.
func (s *Service) TestOnlyStep(f func(name string) error) { s.testOnlyStep = f }
