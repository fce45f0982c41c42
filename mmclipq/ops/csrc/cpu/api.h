// What both sources share: the mark of the functions that Python calls.
#pragma once

#define CLIPQ_API extern "C" __attribute__((visibility("default")))
