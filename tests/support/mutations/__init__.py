"""Inputs as they are in the wild: mutations of whole ones, each with the one right outcome known from its making."""
