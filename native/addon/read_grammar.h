// Grammars and vocabularies of lib/native-types.ts.
#pragma once

#include <memory>

#include "addon/fields.h"
#include "grammar/grammar.h"
#include "grammar/vocabulary.h"

namespace at_moe {

std::shared_ptr<const Grammar> read_grammar(const Fields& from);
std::shared_ptr<Vocabulary> read_vocabulary(const Fields& from);

}  // namespace at_moe
