//! Watches a program's sockets from the kernel and says with evidence whether each one closed.
