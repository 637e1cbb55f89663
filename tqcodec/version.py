"""Version of the package. Imports nothing."""

VERSION = "0.1.0"
