"""Reports: runs become tables, tests, pictures and pages; may import `tracking`, `sweep` and what lies below them."""
