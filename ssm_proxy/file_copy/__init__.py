"""Layer 5: copies files over several SSH connections at once.

engine        one copy, from its sources to its result
  plan_*      what there is to copy, one file after the other
  board       who does what: hands work to the links, takes it back when one is lost
  pool        opens links, paced, and replaces them
    link      one SSH connection, its SFTP channel, and the thread that serves it
      upload, download   what one file's copy consists of
      checksums          SHA-256 on the node
"""
