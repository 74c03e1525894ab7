"""Files from Civitai, the Hugging Face hub and plain addresses: fetched whole, checked, and put where they belong."""
