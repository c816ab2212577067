"""fastnn beside its rivals: the same inputs, dtype and threads, checked before they are timed."""
