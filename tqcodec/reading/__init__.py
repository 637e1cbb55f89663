"""Reading: the door to files, streams, the transform domain, copies, files at addresses."""
