"""Knowledge distillation: train drafts on a target's text and measure how often their tokens are accepted."""
