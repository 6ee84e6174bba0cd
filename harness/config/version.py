"""The version of the package."""

__version__ = "0.1.0"

# Hashed into every identity: raised when the same configuration and data give other scores than before, and only then,
# with an entry in CHANGELOG.md that says which. The package's own version says nothing about results.
RESULTS_VERSION = "0.2.0"
