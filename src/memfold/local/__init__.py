"""The platform on one machine: a private Redis and every service as a child process."""
