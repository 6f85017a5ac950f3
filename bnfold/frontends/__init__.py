"""Front ends: translate a framework's model into operator views, and a fold plan back into the model."""
