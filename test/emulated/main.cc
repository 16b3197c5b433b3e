// Runs one check by name: `program NAME [broken]`. Exit code 0: right, 1: wrong results, which it prints.
#include <cmath>
#include <cstdio>
#include <cstring>

#include "test/emulated/check.h"

std::string differs(const char* what, int index, double actual, double expected, double tolerance) {
  if (std::abs(actual - expected) <= tolerance) return "";  // false for NaN
  return std::string(what) + "[" + std::to_string(index) + "] is " + std::to_string(actual) + ", expected " +
         std::to_string(expected);
}

int main(int argc, char** argv) {
  const std::string name = argc > 1 ? argv[1] : "";
  std::string wrong = "no such check";
  for (const auto* all : {&bugs(), &hopper_bugs()}) {
    if (const auto bug = all->find(name); bug != all->end())
      wrong = bug->second(argc > 2 && std::strcmp(argv[2], "broken") == 0);
  }
  for (const auto* all : {&instructions(), &hopper_instructions()}) {
    if (const auto check = all->find(name); check != all->end()) wrong = check->second();
  }
  if (wrong.empty()) return 0;
  std::printf("%s\n", wrong.c_str());
  return 1;
}
