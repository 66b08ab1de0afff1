"""The only place that knows Ray, HTTP and Gradio."""
