"""User-written content: cards, recipes, interventions, directions, question sets, rubrics, pairs. No torch."""
