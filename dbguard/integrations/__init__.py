"""What joins dbguard to other libraries; each needs its extra, and is imported by those alone who use it."""
