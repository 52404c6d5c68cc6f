"""Words for run ids: short, easy to say and to distinguish."""

from __future__ import annotations

_ADJECTIVES = """
    amber ample apt bold brave brief bright brisk calm candid clear clever cosy crisp curious daring
    deft dusky eager early easy exact fair famous fast fine firm fond fresh gentle glad golden grand
    happy hardy honest jolly keen kind lively loyal lucid lucky mellow merry mild modest neat nimble
    noble patient plain polite proud quick quiet rapid ready robust rosy sharp shiny silent sleek smart
    snug solid spry steady still stout sunny swift tidy tough upbeat vivid warm wise witty young zesty
"""

_ANIMALS = """
    ant badger bat bear beaver bee bison boar bobcat camel carp cat cod condor coral cow crab crane
    cricket crow deer dingo dog dove duck eagle eel egret elk emu falcon ferret finch fox frog gecko
    goat goose gopher gull hare hawk hen heron horse ibex jackal jay kiwi koala lark lemur lion lizard
    llama lynx magpie mole moose moth mouse mule newt ocelot orca osprey otter owl ox panda parrot perch
    pike pony puffin quail rabbit raven robin salmon seal shrew skink sloth snail sparrow squid stork
    swan tapir tern tiger toad trout turtle viper vole walrus wasp weasel whale wolf wombat wren yak
    zebra
"""

ADJECTIVES = tuple(_ADJECTIVES.split())
ANIMALS = tuple(_ANIMALS.split())
