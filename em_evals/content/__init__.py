"""What people write: cards, recipes, interventions, directions, question sets, rubrics, pairs. No torch."""
