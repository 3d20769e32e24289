# A toolchain file for Horovod 0.28.1, which asks for C++14 where torch's headers need C++17. CMake reads it at
# project(), and again at the end of project() by the include below, where the flag of that request is replaced.
set(CMAKE_PROJECT_INCLUDE "${CMAKE_CURRENT_LIST_FILE}")
set(CMAKE_CXX14_STANDARD_COMPILE_OPTION "-std=c++17")
set(CMAKE_CXX14_EXTENSION_COMPILE_OPTION "-std=gnu++17")
