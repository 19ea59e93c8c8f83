"""Images: where they come from, how they are split and packed, and how batches of views are drawn from them."""
