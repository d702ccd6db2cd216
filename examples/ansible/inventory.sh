#!/bin/sh
# Nodes from Systems Manager: those that are online, grouped by tag and platform.
#   ansible-playbook -i inventory.sh playbook.yml
# Account and region are those of AWS_PROFILE and AWS_REGION. The account on the nodes is in group_vars/all.yml.
exec ssm-proxy list --format ansible-inventory "$@"
