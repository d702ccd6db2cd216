"""Layer 5: an authenticated SSH connection over a socket that is already connected to the node's sshd."""
