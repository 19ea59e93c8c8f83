"""The measurements that need a GPU: one command for each, in parts that are kept, so that short lendings add up."""
