"""The demo: what a person would do with the product, done over HTTP, each step checked. It knows no Ray and no gate."""
