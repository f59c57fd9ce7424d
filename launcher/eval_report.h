// SPDX-License-Identifier: Apache-2.0
// What losa eval gives out: tables, JSON, CSV and plots of a summary.
#ifndef LAUNCHER_EVAL_REPORT_H
#define LAUNCHER_EVAL_REPORT_H

#include "launcher/eval_summary.h"

#include <stdio.h>

// For every length: answers, costs, and exact answers by task.
rt_status app_eval_print(FILE *to, const app_summary *summary, const app_policies *policies);
// Every cell with every column; what is not a number is null, or an empty field.
rt_status app_eval_write_json(const char *path, const app_summary *summary,
                              const app_policies *policies, const app_setting *setting);
rt_status app_eval_write_csv(const char *path, const app_summary *summary,
                             const app_policies *policies);
// FOLDER/accuracy-LENGTH.svg and forwards-LENGTH.svg against the density of all forwards;
// policies that differ in the budget alone make a line.
rt_status app_eval_write_plots(const char *folder, const app_summary *summary,
                               const app_policies *policies);

#endif
