package imagestore

// OnStep calls f at each step of a pull or removal.
func OnStep(f func(step string)) { reached = f }
