"""Layer 4: the control plane, that is the AWS API calls around a session. botocore is imported on first use."""
