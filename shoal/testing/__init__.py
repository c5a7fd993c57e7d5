"""Tools for tests of shoal programs: virtual clock, in-process cluster, fault injection."""
